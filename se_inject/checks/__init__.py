"""What is proven after every splice, and what it costs."""
