"""One rule table a family."""
