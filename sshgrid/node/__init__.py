"""One node: its connection kept up, its toolchains checked, its files cleaned."""
