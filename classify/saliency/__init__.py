"""Where a network looked: saliency maps, laid back on the film."""
