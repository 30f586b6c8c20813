"""Models and recordings from elsewhere: addresses and downloads."""
