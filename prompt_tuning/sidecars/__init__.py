"""XMP sidecars: small files beside photos, which photo managers keep keywords and ratings in."""
