"""Parts of the shell: what runs behind the prompt, what completes a line, and the editor of small programs."""
