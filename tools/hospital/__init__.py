"""Beside a PACS: films received, judged, and the results returned as DICOM objects."""

KINDS = ("sr", "gsps", "seg", "saliency", "sc")  # of result objects
FORMS = ("comprehensive", "comprehensive3d")  # of reports
MANUFACTURER, MODEL = "lungfirst project", "lungfirst"
