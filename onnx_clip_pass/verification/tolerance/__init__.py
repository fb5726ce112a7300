"""What the formulas give, in float64, and how far from it a result may be."""
