"""Files that users bring beside sound and pictures: tables, poses, feature arrays (numpy)."""
