"""Training: what turns a training method and encoded rows into trained weights or an adapter."""
