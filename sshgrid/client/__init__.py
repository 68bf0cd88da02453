"""What every face shares to reach a master and to follow work."""
