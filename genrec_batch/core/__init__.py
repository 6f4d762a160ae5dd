"""The words that all rooms speak: errors, arrays, the feature layout, options."""
