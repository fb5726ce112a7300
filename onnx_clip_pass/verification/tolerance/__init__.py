"""Results of the formulas, in float64, and how far from it a result may be."""
