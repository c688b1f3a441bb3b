"""Beside a PACS: films received, judged, and the results returned as DICOM objects."""
