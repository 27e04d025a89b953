"""What only notebooks need: Colab and Drive, figures, widgets."""
