"""The steps that every request takes, in every worker class and protocol."""
