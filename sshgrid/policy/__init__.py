"""Pure decisions: placement, fair share, quota, access, retry, states."""
