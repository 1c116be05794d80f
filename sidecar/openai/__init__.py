"""The OpenAI API over HTTP, through the same scheduler as everything else."""
