"""Beyond one machine: millions of images, and hundreds of products, with Ray or with processes."""
