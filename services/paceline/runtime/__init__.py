"""What every service process needs: configuration, the wire, text, status codes, servers, child processes."""
