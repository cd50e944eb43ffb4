"""Training: the flow objective, triples of (condition, prompt, target), the autoencoder's and the transformer's loops.

Importing the package loads no torch; its modules do.
"""
