"""Generated protobuf stubs. Never edited; `make proto` writes them."""
