"""The networks of stage two as plain torch modules."""
