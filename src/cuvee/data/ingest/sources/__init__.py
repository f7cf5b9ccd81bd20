"""Find the text: files and folders here or at URLs, and data sets of the Hugging Face Hub."""
