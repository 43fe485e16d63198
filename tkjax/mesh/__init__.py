"""Surfaces as the zero set of a signed distance on a tetrahedral grid: grids, marching tetrahedra, normals, targets."""
