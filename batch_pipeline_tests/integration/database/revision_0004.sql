-- The tables of revision 0004, as pg_dump wrote them. Nothing older was in use.
CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;

CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE public.model_call_slots (
    server text NOT NULL,
    kind text NOT NULL,
    holder uuid NOT NULL,
    wanted integer NOT NULL,
    held integer NOT NULL,
    since timestamp with time zone NOT NULL,
    leased_until timestamp with time zone NOT NULL
);

CREATE TABLE public.upload_batches (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    total_uploads integer DEFAULT 0 NOT NULL,
    processed_uploads integer DEFAULT 0 NOT NULL,
    successful_uploads integer DEFAULT 0 NOT NULL,
    failed_uploads integer DEFAULT 0 NOT NULL,
    error_message text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    completed_at timestamp with time zone,
    slices integer DEFAULT 0 NOT NULL,
    died_runs integer DEFAULT 0 NOT NULL
);

CREATE TABLE public.uploads (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    batch_id uuid,
    filename text NOT NULL,
    file_path text NOT NULL,
    file_type text NOT NULL,
    file_size bigint NOT NULL,
    mime_type text,
    processing_status text DEFAULT 'pending'::text NOT NULL,
    description text,
    description_audit_score integer,
    embedding_local public.vector(1024),
    thumbnail_path text,
    video_codec text,
    error_message text,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    hidden boolean DEFAULT false NOT NULL,
    regeneration_count integer DEFAULT 0 NOT NULL,
    last_regenerated_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    slice integer,
    dispatch_reason text DEFAULT 'new'::text NOT NULL,
    owner_run_id text,
    claim bigint DEFAULT '0'::bigint NOT NULL,
    heartbeat_at timestamp with time zone,
    attempts integer DEFAULT 0 NOT NULL,
    not_before timestamp with time zone,
    redo text[] DEFAULT '{}'::text[] NOT NULL,
    error_kind text,
    vision_model text,
    embedding_model text,
    stage_seconds jsonb DEFAULT '{}'::jsonb NOT NULL,
    checksum text,
    deaths integer DEFAULT 0 NOT NULL,
    retries integer DEFAULT 0 NOT NULL,
    retry_at timestamp with time zone
);

ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY public.model_call_slots
    ADD CONSTRAINT pk_model_call_slots PRIMARY KEY (server, kind, holder);

ALTER TABLE ONLY public.upload_batches
    ADD CONSTRAINT pk_upload_batches PRIMARY KEY (id);

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT pk_uploads PRIMARY KEY (id);

CREATE INDEX ix_upload_batches_newest ON public.upload_batches USING btree (created_at DESC, id);

CREATE INDEX ix_upload_batches_open ON public.upload_batches USING btree (created_at, id) WHERE (status = ANY (ARRAY['pending'::text, 'processing'::text]));

CREATE INDEX ix_uploads_audit_score ON public.uploads USING btree (description_audit_score);

CREATE INDEX ix_uploads_batch ON public.uploads USING btree (batch_id, created_at, id);

CREATE INDEX ix_uploads_embedding ON public.uploads USING hnsw (embedding_local public.vector_cosine_ops) WITH (m='12', ef_construction='48');

CREATE INDEX ix_uploads_embedding_model ON public.uploads USING btree (embedding_model);

CREATE INDEX ix_uploads_ended ON public.uploads USING btree (updated_at) WHERE (processing_status = ANY (ARRAY['completed'::text, 'failed'::text]));

CREATE INDEX ix_uploads_held ON public.uploads USING btree (owner_run_id) WHERE ((owner_run_id IS NOT NULL) OR (processing_status = ANY (ARRAY['analyzing'::text, 'embedding'::text])));

CREATE INDEX ix_uploads_retry_at ON public.uploads USING btree (retry_at) WHERE (retry_at IS NOT NULL);

CREATE INDEX ix_uploads_user ON public.uploads USING btree (user_id, embedding_model);

CREATE INDEX ix_uploads_waiting ON public.uploads USING btree (batch_id, slice, created_at, id) WHERE ((processing_status = 'pending'::text) AND (owner_run_id IS NULL));

CREATE INDEX ix_uploads_without_batch ON public.uploads USING btree (created_at) WHERE ((batch_id IS NULL) AND (processing_status = 'pending'::text));

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT fk_uploads_batch_id FOREIGN KEY (batch_id) REFERENCES public.upload_batches(id) ON DELETE SET NULL;

INSERT INTO public.alembic_version VALUES ('0004');
