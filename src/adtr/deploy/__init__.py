"""From a trained model to one file that runs without PyTorch, with the same scores."""
