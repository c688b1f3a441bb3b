"""Is it one upright frontal chest film? Told from what the lung field's network sees anyway."""
