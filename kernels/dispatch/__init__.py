"""What every operator needs: registration, launching, the choice of an implementation."""
