"""Users: the accounts of the SSH gateway, their public keys and their passwords."""
