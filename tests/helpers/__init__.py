"""What several tests share: tiny runs, files that do harm, disks that fail, drawn pictures."""
