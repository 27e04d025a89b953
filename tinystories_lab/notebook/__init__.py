"""What only notebooks need: Colab and Drive, HTML, figures, diagrams and widgets."""
