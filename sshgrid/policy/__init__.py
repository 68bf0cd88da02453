"""Pure decisions about jobs: placement, fair share, user limits, access, circuit breakers, retry and states."""
