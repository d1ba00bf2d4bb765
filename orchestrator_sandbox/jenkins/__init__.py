"""A Jenkins that answers the Remote Access API, and really builds."""
