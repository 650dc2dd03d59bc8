"""Images, figures and HTML reports."""
