"""What every implementation of a protocol must do: inherit the class, give an instance."""
