"""Torture: many jobs over the lab of real hosts while all around them dies, and a checker that counts the dead."""
