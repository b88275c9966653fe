"""An app with one table: what commit_check="token" leaves behind, to be found after a crash."""
