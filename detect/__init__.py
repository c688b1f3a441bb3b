"""Stage one: finds the thorax box on a film and crops the film to it."""
