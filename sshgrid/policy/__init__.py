"""Pure decisions about jobs: placement, fair share, quota, access, circuit breakers, retry and states."""
