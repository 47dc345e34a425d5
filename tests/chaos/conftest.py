"""What the tests under chaos share with the end-to-end ones."""

from tests.e2e.conftest import demo_model, tell

__all__ = ["demo_model", "tell"]
