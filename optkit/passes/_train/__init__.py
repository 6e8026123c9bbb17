"""The training hook, one for all passes that train: settings, batches, losses and the default loop."""
