"""One model, one stream of images, one labelled Dataset."""
