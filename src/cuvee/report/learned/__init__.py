"""What the learned policies of a report saw, preferred and did, from what their runs recorded."""
