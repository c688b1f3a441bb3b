"""Stage two: classifies crops, screens out the definitely normal, audits and reports."""
