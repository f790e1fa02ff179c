"""What happens to every request, whatever the worker class or protocol."""
