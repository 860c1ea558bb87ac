"""What each removal costs, which to take, and how the rest moves."""
