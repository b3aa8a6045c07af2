"""An inventory in the form of RGI 7.0: outlines, complexes, intersects and what belongs to them."""
