"""What a rank is and does in its executor. It knows nothing of the driver but the orders that come from there."""
