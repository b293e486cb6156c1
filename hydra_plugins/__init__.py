"""Where Hydra looks for plugins; the folder's name is Hydra's."""
