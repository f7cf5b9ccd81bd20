"""The guard that wraps every policy that steers a real run, and the parts it is made of."""
