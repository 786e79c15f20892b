"""Make a language model forget, and measure whether it did."""
