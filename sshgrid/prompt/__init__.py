"""Parts of the shell: jobs in the background, completion, and the editor for small programs."""
